"""A plant on one machine: sensors, models, a broker and the agent, with nothing to configure."""
