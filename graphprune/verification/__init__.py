"""Do two models compute the same, and if not, how far are they apart and where do they part?"""
