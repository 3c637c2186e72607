"""Lower levels with constraints: Lagrangians, their saddle points, and exact solutions of two kinds of them."""
