"""Who made a bundle: signatures of OpenSSF model signing, by a key of the user's own, without any network."""
