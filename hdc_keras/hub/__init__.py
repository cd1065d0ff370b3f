"""Push runs, classifiers and exports to the Hugging Face Hub, and pull them from it."""
