"""The settings: their schema, the presets, and how presets, files and flags become one `Settings`."""
