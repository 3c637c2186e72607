"""One benchmark per paper claim: ``python -m benchmarks <slug>`` measures it and says whether the bar is met."""
