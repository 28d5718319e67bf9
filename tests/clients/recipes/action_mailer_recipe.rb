# Runs the blocks of docs/clients.md for Rails and for GitLab, which sends with ActionMailer:
# ruby action_mailer_recipe.rb PRODUCT SUBJECT BLOCK
require 'ostruct'
require 'action_mailer'

product, title, block = ARGV
config = OpenStruct.new(action_mailer: OpenStruct.new)
gitlab_rails = {}
eval File.read(block)
settings = config.action_mailer.smtp_settings
if product == 'GitLab' # as its config/initializers/smtp_settings.rb is written by gitlab-ctl reconfigure
  names = %i[address port user_name password authentication tls enable_starttls_auto openssl_verify_mode]
  settings = names.to_h { |name| [name, gitlab_rails.fetch("smtp_#{name}")] }
  settings[:authentication] = settings[:authentication].to_sym
end
ActionMailer::Base.delivery_method = :smtp
ActionMailer::Base.smtp_settings = settings
begin
  ActionMailer::Base.mail(from: 'you@example.com', to: 'to@x.example', subject: title, body: 'Hello').deliver_now
rescue StandardError => e
  warn "#{e.class}: #{e.message}"
  exit 1
end
