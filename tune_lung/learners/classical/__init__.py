"""Classical learners: features of every image, and an estimator of scikit-learn that is fitted to them once."""
