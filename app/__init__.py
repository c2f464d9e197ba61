"""The service."""

import gc

# The start makes objects by the hundred thousand, and nearly all stay: a tenth of it would be looking through them in
# vain.
gc.set_threshold(50_000, 20, 50)
