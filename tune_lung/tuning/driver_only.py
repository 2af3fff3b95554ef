"""What stays in the driver's process."""


class DriverOnly:
    """An object of ours that Ray holds: Ray pickles it into state files that we never read back, so it gives nothing."""

    def __getstate__(self) -> dict[str, object]:
        """Give Ray's state files nothing."""
        return {}
