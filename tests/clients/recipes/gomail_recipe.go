// Runs the block for gomail of docs/clients.md, which takes the place of the line RECIPE: go run gomail_recipe.go SUBJECT
package main

import (
	"fmt"
	"os"

	"gopkg.in/mail.v2"
)

func main() {
	message := mail.NewMessage()
	message.SetHeader("From", "you@example.com")
	message.SetHeader("To", "to@x.example")
	message.SetHeader("Subject", os.Args[1])
	message.SetBody("text/plain", "Hello")
	// RECIPE
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
