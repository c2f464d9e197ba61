class BackupError(Exception):
    """What the operator can mend, in one sentence."""


class FaultError(BackupError):
    """An archive is not as it was written."""
