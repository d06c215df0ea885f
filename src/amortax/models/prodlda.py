"""ProdLDA (Srivastava and Sutton 2017): the words of a document are a product of topics, not a mixture of them.

    θ_d = softmax(h_d),  h_dk ~ Normal(0, sqrt((1 - 1/K) / doc_topic_prior))   as in `lda.amortized`
    counts_d ~ Multinomial(length_d, softmax(b + Σ_k θ_dk β_k))

b are the log frequencies of words in all documents. A topic β_k says by how many e-folds its words come more or less
often than that, so that none has to repeat what all documents share, and can rule out a word that another allows. The
topics are learned by maximum likelihood. An empty document has the prior's shares; give some to training where new ones
will come.

    import amortax as am
    from amortax.models import lda, prodlda

    data = lda.documents(counts)                                     # (documents, words)
    plan = am.amortize(prodlda.amortized(20, counts.sum(axis=0)), data, plate="document", encoder=am.dense(width=100))
    posterior = am.fit(plan, data, key=key, num_steps=3000)
    prodlda.learned_topics(posterior)                                # (topics, words), e-folds above b
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from ..posterior import Posterior
from .lda import APART, log_frequencies, shares_sd, trained_topics


def amortized(num_topics: int, word_counts: ArrayLike, *, doc_topic_prior: float = 0.1) -> Callable:
    """The model of `counts` whose shares of topics an encoder finds.

    Args:
        num_topics: K.
        word_counts: (words,) of all documents, from which b is taken.
        doc_topic_prior: of the Dirichlet that the logistic normal prior is nearest to.

    """
    frequencies, sd = log_frequencies(word_counts), shares_sd(num_topics, doc_topic_prior)

    def prodlda(counts: Array) -> None:
        start = (num_topics, len(frequencies))
        topics: Any = numpyro.param("topics", lambda key: APART * jax.random.normal(key, start))
        with numpyro.plate("document", counts.shape[0]):
            log_shares: Any = numpyro.sample("log_shares", dist.Normal(0.0, sd).expand([num_topics]).to_event(1))
            logits = frequencies + jax.nn.softmax(log_shares) @ topics
            numpyro.sample("counts", dist.Multinomial(jnp.sum(counts, axis=-1), logits=logits), obs=counts)

    return prodlda


def learned_topics(posterior: Posterior) -> Float[np.ndarray, "topics words"]:
    """β: how many e-folds more often than in all documents a word comes in each topic."""
    return np.asarray(trained_topics("prodlda", posterior))
