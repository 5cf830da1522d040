"""Training of PAM's stage II: its two ControlNets on a frozen FLUX.1-dev, as the official code trains them.

`run.run_stage_two` is the entry. Latents, text and condition images are made once (`cache`); what a step reads is a
function of its number (`batches`); the loss is `objective`'s.
"""
