"""The engine: what turns token ids into token ids, behind one protocol."""
