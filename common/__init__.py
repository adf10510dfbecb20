"""What all parts share: settings, spaces, the step and chunk format, networks, policies. Knows no Ray and no environment."""
