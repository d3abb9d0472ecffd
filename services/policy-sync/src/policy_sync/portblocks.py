"""Ranges of ports as blocks of equal prefixes, the form in which the kernel looks them up."""

PORTS = 1 << 16


def blocks(low: int, high: int) -> list[tuple[int, int]]:
    """The smallest list of (port, prefix length) that covers low … high (inclusive) and nothing else.

    >>> blocks(80, 80)
    [(80, 16)]
    >>> blocks(8, 15)
    [(8, 13)]
    >>> blocks(0, 65535)
    [(0, 0)]
    """
    if not 0 <= low <= high < PORTS:
        raise ValueError(f"{low}–{high} is no range of ports")
    found = []
    while low <= high:
        size = low & -low or PORTS  # the largest block that may begin here
        while size > high - low + 1:
            size //= 2
        found.append((low, 16 - (size.bit_length() - 1)))
        low += size
    return found
