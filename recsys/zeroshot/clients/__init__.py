"""Who answers prompts: endpoints, local models, mocks."""
