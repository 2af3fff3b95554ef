"""What trains models and answers with them: one interface, and a learner for each way of learning."""
