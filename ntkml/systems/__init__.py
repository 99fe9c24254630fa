"""Other ways of learning hyperparameters, beside the bounds on the marginal likelihood. One file each."""
