"""What the theorems are tried on: seeds, networks, likelihoods, priors of every kind and precisions of every size."""

from hypothesis import strategies as st

from tests.factories import LIKELIHOODS, NETWORKS

seeds = st.integers(0, 999)
networks = st.sampled_from(list(NETWORKS))
likelihoods = st.sampled_from(list(LIKELIHOODS))
kinds = st.sampled_from(["scalar", "layerwise", "diagonal"])
scales = st.floats(-4, 4).map(lambda exponent: 10**exponent)
