"""What must hold before the model is loaded: each fault is one line with its remedy and an exit code of its own."""
