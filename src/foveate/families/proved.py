PROVED: dict[str, str] = {}
