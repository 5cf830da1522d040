"""Stage II: first frames by FLUX.1-dev under PAM's two ControlNets."""
