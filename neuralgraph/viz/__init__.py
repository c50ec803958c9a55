"""Plot style and panels: ``(ax, arrays) -> ax``."""
