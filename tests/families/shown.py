"""What a family shows a method that reduces in the tower."""

__all__ = ["Shown"]


class Shown:
    """A reducer that keeps what it is shown; `lengths` are the tokens of each image, for families that ask."""

    early = False

    def __init__(self, lengths=()):
        self._lengths, self.views = lengths, []

    def lengths(self, total):
        assert total == sum(self._lengths)
        return self._lengths

    def reduce(self, views):
        self.views.extend(views)
        return [None] * len(self.views)
