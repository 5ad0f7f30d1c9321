"""Constants of the hashes that randomness comes from; see `easd.core.noise`."""

# SplitMix's 64-bit finaliser (Steele et al. 2014), as signed integers.
GOLDEN_64 = -0x61C8864680B583EB
MIX_64 = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
# A two-round 32-bit avalanche hash ("lowbias32", C. Wellons).
GOLDEN_32 = -0x61C88647
MIX_32 = (0x21F0AAAD, 0x735A2D97)
