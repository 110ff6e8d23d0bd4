//! What Istio would refuse: one `validate` serves the folder, the webhook and the command line.
