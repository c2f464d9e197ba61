"""What a browser or program calls itself, in the words of people."""

from ua_parser import parse


def device_of(user_agent: str | None) -> str | None:
    """Such as `Firefox on Linux`; none when the header says nothing known. It is the client's own word."""
    if not user_agent:
        return None
    known = parse(user_agent)
    program = known.user_agent and known.user_agent.family
    system = known.os and known.os.family
    return " on ".join(part for part in (program, system) if part) or None
