"""What all parts share: settings, spaces, the step and chunk format, networks, policies; no Ray, no environment."""
