// Three identities, each for one thing: the app itself, the job that builds, the job that deploys. None has a password.
param location string
param prefix string
param subjectPrefix string

var issuer = 'https://token.actions.githubusercontent.com'
var audiences = ['api://AzureADTokenExchange']

resource app 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: '${prefix}-app'
  location: location
}

resource build 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: '${prefix}-build'
  location: location
}

resource deploy 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: '${prefix}-deploy'
  location: location
}

// What runs on main may push images ...
resource fromMain 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2024-11-30' = {
  parent: build
  name: 'main'
  properties: {
    issuer: issuer
    subject: '${subjectPrefix}:ref:refs/heads/main'
    audiences: audiences
  }
}

// ... and what its environment lets through may deploy them.
resource fromProduction 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2024-11-30' = {
  parent: deploy
  name: 'production'
  properties: {
    issuer: issuer
    subject: '${subjectPrefix}:environment:production'
    audiences: audiences
  }
}

output appId string = app.id
output appClientId string = app.properties.clientId
output appPrincipalId string = app.properties.principalId
output buildClientId string = build.properties.clientId
output buildPrincipalId string = build.properties.principalId
output deployClientId string = deploy.properties.clientId
output deployPrincipalId string = deploy.properties.principalId
