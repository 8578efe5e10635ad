"""Everything registered holds what its kind promises."""
