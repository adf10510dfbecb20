"""A run in the browser: its dreams, its episodes, its agent, and how it stands."""
