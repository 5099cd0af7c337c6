"""Publishing grown networks: run folders become staged folders, staged folders repositories of the Hub, and back."""
