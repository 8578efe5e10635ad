"""What the layouts of magnetic resonance share: k-space, coil maps, the scanner header."""
