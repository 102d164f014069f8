"""Who may use the server: keys, certificates, and the files that they come from."""
