"""A script as a test runs it."""

from pathlib import Path

PROJECT = Path(__file__).parents[2]


def program_of(script: str) -> str:
    """The script without the step before it, which installs what the tests run in already. For `python -c`."""
    return f"""
import sys
sys.path.insert(0, {str(PROJECT / "scripts")!r})
import environment
environment.enter = lambda *_: None
import {script}
{script}.main()
"""
