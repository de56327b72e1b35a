"""How to speak to one kind of upstream, one module each: its paths, its credential, what of a request is rewritten for it."""
