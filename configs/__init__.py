"""The named configs, as YAML files. `hdc-keras configs list` shows the first two comment lines of each."""
