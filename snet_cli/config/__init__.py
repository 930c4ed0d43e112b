"""Options from flags, environment, YAML and presets: read strictly, merged in a fixed order, explained when wrong."""
