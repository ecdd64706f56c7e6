"""How the work of a step is shared out over processes: Lightning strategies, each with presets in `conf/strategy`."""
