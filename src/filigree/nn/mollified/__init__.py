"""Networks that begin linear and shallow, and stochastic depth."""
