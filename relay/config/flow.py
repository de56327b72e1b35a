"""A value as YAML on one line, the way people write it."""


def flow(value: object) -> str:
    """Write `value`, made of mappings, lists, text, numbers and switches."""
    match value:
        case bool():
            return "true" if value else "false"
        case dict():
            return "{" + ", ".join(f"{flow(name)}: {flow(inner)}" for name, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(flow, value)) + "]"
        case str() if any(char in value for char in "{}[],#&*'\"") or ": " in value:
            return f'"{value}"'
        case _:
            return str(value)
