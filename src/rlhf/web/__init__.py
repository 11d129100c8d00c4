"""Pages and protocols on one address of this machine: who is let in, and what is served."""
