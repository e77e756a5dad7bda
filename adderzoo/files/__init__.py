"""Files of a user: what they say is checked before it is believed, what is written is whole or not there."""
