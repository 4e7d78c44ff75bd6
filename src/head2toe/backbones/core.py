"""`Backbone`: a frozen network with its taps, preprocessing and fingerprint."""
