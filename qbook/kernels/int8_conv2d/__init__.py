"""INT8 convolutions.  Book: 6.2"""
