"""Keys and signatures in the forms of cosign."""
