"""Pictures of a plan, as characters for a terminal and as an SVG: the traffic between ranks, and the sharding of parameters."""
