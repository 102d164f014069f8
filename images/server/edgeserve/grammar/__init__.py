"""Grammars that answers follow: from a JSON schema to GBNF, exactly or not at all."""
