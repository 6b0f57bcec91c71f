"""What people are shown of an explanation: pages, pictures, plain text. It knows no model and no server."""
