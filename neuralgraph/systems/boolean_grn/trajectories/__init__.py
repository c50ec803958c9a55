"""Trajectories of a Boolean network, and the network they determine."""
