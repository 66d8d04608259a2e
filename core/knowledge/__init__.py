"""What is kept between runs: profiles of models, and what was learned from texts."""
