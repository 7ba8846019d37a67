"""Split SSH: keys stay in a vault, other qubes have their signatures made there."""
