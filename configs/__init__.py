"""The named experiments, as YAML files."""
